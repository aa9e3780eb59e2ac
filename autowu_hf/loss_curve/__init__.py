"""Mathematics on loss curves; knows no options and no training."""
