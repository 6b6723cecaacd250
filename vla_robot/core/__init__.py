"""The nouns and the ports. numpy and the standard library only."""
