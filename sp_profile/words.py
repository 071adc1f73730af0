"""Common English words for the built-in tasks: keys of needles, and padding."""

from __future__ import annotations

ADJECTIVES = (
    "able", "active", "amber", "ancient", "basic", "bitter", "black", "blue", "brave", "brief",
    "bright", "broad", "brown", "busy", "calm", "careful", "cheap", "clean", "clear", "clever",
    "cold", "common", "cool", "curious", "daily", "dark", "deep", "direct", "distant", "dry",
    "early", "easy", "empty", "even", "fair", "famous", "fast", "final", "fine", "firm",
    "flat", "formal", "free", "fresh", "full", "gentle", "golden", "grand", "gray", "great",
    "green", "happy", "hard", "heavy", "hidden", "honest", "large", "light", "local", "lucky",
)  # fmt: skip
NOUNS = (
    "apple", "arm", "bank", "beach", "bell", "bird", "board", "boat", "book", "bottle",
    "box", "bread", "bridge", "camera", "camp", "card", "castle", "cat", "chair", "city",
    "clock", "cloud", "coat", "coffee", "corner", "cup", "desk", "doctor", "dog", "door",
    "dress", "farm", "field", "fire", "fish", "floor", "flower", "forest", "game", "garden",
    "gate", "glass", "guitar", "hand", "harbor", "hat", "hill", "horse", "hotel", "house",
    "island", "key", "kitchen", "lake", "lamp", "leaf", "letter", "library", "machine", "map",
    "market", "meadow", "mirror", "moon", "mountain", "museum", "music", "ocean", "office", "pear",
    "paper", "park", "path", "pencil", "piano", "picture", "plane", "plant", "queen", "rain",
    "river", "road", "roof", "room", "school", "ship", "shoe", "snow", "station", "stone",
)  # fmt: skip
