"""How what the package ships was made: the miniature, the trust study, an aesthetics head."""
