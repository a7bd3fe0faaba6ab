"""What one job costs, counted: a commit that makes a job dearer changes a number of the table."""
