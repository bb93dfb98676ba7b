"""How gunicorn runs the application: its command line, worker class, hooks and metric files."""
