"""`llava-next-smol`: real, pretrained parts in a LLaVA-NeXT of the real geometry."""
