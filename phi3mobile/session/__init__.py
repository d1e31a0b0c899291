"""From messages to text: the conversation, the token loop, what is drawn from the logits, and drafts."""
