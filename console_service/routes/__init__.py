"""The routes of the console: each translates one HTTP request into calls of the services."""
