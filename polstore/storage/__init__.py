"""The store on disk: content-addressed blobs and the records of runs, in one LMDB environment."""
