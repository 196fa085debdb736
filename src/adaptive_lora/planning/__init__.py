"""What decides ranks: shapes, budgets, plans, strategies. No tensors."""
