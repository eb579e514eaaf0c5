"""Web server: the routes of the original demo and of clip-retrieval, an API, and the page."""
