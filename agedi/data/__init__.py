"""Data of AGeDi: structures as padded graphs, data sets with labels, batches, buckets of equal length."""
