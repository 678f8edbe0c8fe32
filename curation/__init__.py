"""Sources, documents, quality scores, Ask-LLM, semantic deduplication and decontamination."""
