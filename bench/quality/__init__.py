"""What pruning costs in accuracy: trains and evaluates the demo's small vision-language model."""
