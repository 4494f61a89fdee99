"""What a bundle carries besides images: loader, assets, catalogue."""
