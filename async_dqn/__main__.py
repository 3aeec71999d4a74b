"""`python -m async_dqn`: the same as the command `async-dqn`."""

import sys

if __name__ == "__main__":
    try:
        from async_dqn.cli import main

        code = main()
    except KeyboardInterrupt:  # during the imports above; later ones are main's
        code = 130
    sys.exit(code)
