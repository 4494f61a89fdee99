"""What a bundle carries beside images: loader, assets, catalogue."""
