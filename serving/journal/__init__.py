"""The journal of predictions, and the feedback on them."""
