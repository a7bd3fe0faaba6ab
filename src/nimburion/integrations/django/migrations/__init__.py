"""Migrations of the app. It has no tables; they register the model for permissions."""
