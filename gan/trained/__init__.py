"""What is done with a trained run: reported, compared, exported, trained further."""
