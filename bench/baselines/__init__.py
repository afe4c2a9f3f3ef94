"""What mi_pruner is measured against."""
