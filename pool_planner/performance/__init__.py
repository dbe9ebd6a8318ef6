"""What an engine can do: measured curves, what they say about a load, and what live measurements correct in them."""
