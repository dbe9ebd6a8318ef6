"""One public OpenAI-compatible endpoint in front of many pools."""
