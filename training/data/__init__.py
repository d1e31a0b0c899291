"""Raw text to filtered, packed token shards, the sampler that mixes them, and synthetic data."""
