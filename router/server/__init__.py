"""How gunicorn runs the application: worker class, hooks, metric files."""
