"""The pages of the dashboard, one module each; folders hold those of one subject."""
