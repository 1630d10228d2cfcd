"""Integrations with other platforms; nothing else imports them."""
