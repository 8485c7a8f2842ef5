"""One room per downstream task."""
