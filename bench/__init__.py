"""weitiao side by side with its peers: one folder a suite, what they share in shared/, figures in results/."""
