"""What the tests share: builders and checks, no test."""
