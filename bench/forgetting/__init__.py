"""Task gain against loss on the exams, over replay, method and learning rate."""
