"""What the node holds and what it owes: durable files, the index, the job queue, the timeline."""
