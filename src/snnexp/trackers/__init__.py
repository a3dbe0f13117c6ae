"""What is measured while a model trains, beside loss and metrics."""
