"""A trained model at work: scores of pairs and embeddings of products, dealt to ranks in resumable shards."""
