"""What a user calls: embed, predict, segment everything, personalize, find by words."""
