"""Where facts about pods come from; each module is one wire, all keep one promise (base.py)."""
