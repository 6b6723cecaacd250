"""Policies that lerobot trained, behind the port Policy: its model and its processors, without its queues.

    folder     reads and checks the JSON files of a policy folder, before lerobot sees them
    families   the types of policy that run here, and why the others do not
    hub        local folders of what lerobot would download
    model      builds the model, and checks every tensor of the file and of the model
    processors lerobot's own pre- and postprocessing, with the statistics that it needs
    features   the folder's features by the arm's names and units, and the batch that lerobot reads
    noise      the random numbers of each row
    newer_transformers   what lerobot's models need to run with the pinned transformers
    policy     the policy

It may import core, recipe and policy.device. Importing lerobot's policies takes seconds, so only functions do it.
Nothing here trains, opens a dataset, or uses the network.
"""
