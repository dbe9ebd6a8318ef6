"""The demo: the whole system on mock engines, watched while it runs and summed up at its end."""
