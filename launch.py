"""Train with `python launch.py [options]`; see `python launch.py --help`."""

import sys

if __name__ == "__main__":
    try:
        from async_dqn.cli import main

        code = main()
    except KeyboardInterrupt:  # during the imports above; later ones are main's
        code = 130
    sys.exit(code)
