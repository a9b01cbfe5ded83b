"""The version of weitiao, in one place."""

VERSION = "0.1.0"
