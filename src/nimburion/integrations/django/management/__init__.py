"""The commands of the app: `manage.py nimburion …`."""
