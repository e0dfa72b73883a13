"""Recognition of categories: a linear probe on [CLS], and fine-tuning."""
