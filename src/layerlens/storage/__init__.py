"""Files and folders that survive being killed, shared by processes; and the files that come with layerlens."""
