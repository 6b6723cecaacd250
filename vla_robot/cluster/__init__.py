"""Where tasks run: threads of this process (`local`), or a Ray cluster (`ray_runner`, with the extra [cluster]).

It may import core, and Ray only inside `ray_connection` and `ray_runner`, which no other room imports. What a task does
never belongs here.
"""
