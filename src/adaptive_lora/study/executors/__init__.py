"""Where banks are trained: in this process, in others of this machine, on a cluster, or wherever an executor leads."""
