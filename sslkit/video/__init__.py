"""Video: clips from folders of frames or video files."""
