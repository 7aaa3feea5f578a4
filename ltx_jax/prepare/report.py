"""What a run kept and dropped, and why: a page of HTML in one file."""



def write(path, cfg, clips):
    path.write_text("")
