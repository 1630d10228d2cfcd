"""Who may ask for what: keys, the file that they are kept in, and how often each may be used."""
