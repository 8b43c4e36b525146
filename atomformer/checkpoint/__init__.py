"""Models on disk in the published Hugging Face layout."""
