"""The window's content: one column on a phone with the conversations in a drawer, two columns where there is room."""

from __future__ import annotations

from kivy.graphics import Color, Rectangle
from kivy.metrics import dp
from kivy.uix.boxlayout import BoxLayout
from kivy.uix.floatlayout import FloatLayout
from kivy.uix.widget import Widget

from phi3mobile.assistant.state import State
from phi3mobile.assistant.ui.chat import ChatView
from phi3mobile.assistant.ui.composer import Composer
from phi3mobile.assistant.ui.drawn import Line
from phi3mobile.assistant.ui.panel import Panel
from phi3mobile.assistant.ui.parts import Bar, Column, IconButton, Surface
from phi3mobile.assistant.ui.sheets import ProblemCard, Sheet
from phi3mobile.assistant.ui.sidebar import Sidebar
from phi3mobile.assistant.ui.theme import Theme
from phi3mobile.unicode import printable

SIDEBAR = 280  # dp


class Content(FloatLayout):
    """Draws a State; what a person does goes to `actions` (the App)."""

    def __init__(self, theme: Theme, state: State, actions) -> None:
        super().__init__()
        self.theme, self.state, self.actions = theme, state, actions
        with self.canvas.before:
            Color(*theme.color("background"))
            self._ground = Rectangle()
        self.bind(pos=self._place, size=self._place)
        self.sheet: Sheet | None = None
        self.drawer: Drawer | None = None
        row = BoxLayout()
        self.sidebar: Sidebar | None = None
        if not theme.phone:
            self.sidebar = Sidebar(theme, actions, size_hint_x=None, width=dp(SIDEBAR))
            row.add_widget(self.sidebar)
        main = BoxLayout(orientation="vertical")
        self.chat = ChatView(theme, actions)
        self.composer = Composer(theme, actions)
        self.panel = Panel(theme)
        self._panel_place = Column()
        self._problem_place = Column(padding=(theme.margin, dp(8), theme.margin, 0))
        self._load_bar = Bar(theme)
        for widget in (self._top(), self._load_bar, self._panel_place, self._problem_place, self.chat, self.composer):
            main.add_widget(widget)
        row.add_widget(main)
        self.add_widget(row)
        if state.settings.panel:
            self.toggle_panel()
        self.refresh({"chats", "messages", "status", "problem", "pictures"})

    def refresh(self, old: set[str]) -> None:
        """Draw anew the parts of State that are old (see State)."""
        state = self.state
        if "chats" in old:
            for sidebar in (self.sidebar, self.drawer.sidebar if self.drawer else None):
                if sidebar is not None:
                    sidebar.show(state.chats, state.chat)
        if "messages" in old:
            self.chat.show(state.messages, suggest=state.problem is None)
        elif "answer" in old and state.messages:
            self.chat.grow(state.messages[-1])
        if "pictures" in old:
            self.composer.pictures.show(self.state.draft.pictures)
        if "problem" in old:
            self._show_problem()
        if old & {"status", "library", "chats", "messages"}:
            self._show_status()

    def show_live(self) -> None:
        if self.panel.parent is not None:
            self.panel.show(self.state.live(), self.state.speed.history)

    def toggle_panel(self) -> bool:
        """Whether it is open now."""
        if self.panel.parent is None:
            self._panel_place.add_widget(self.panel)
            self.show_live()
            return True
        self._panel_place.remove_widget(self.panel)
        return False

    def open_sheet(self, sheet: Sheet) -> None:
        self.close_sheet()
        self.sheet = sheet
        self.add_widget(sheet)

    def close_sheet(self) -> bool:
        """Whether there was one, or the drawer."""
        for name in ("sheet", "drawer"):
            if (over := getattr(self, name)) is not None:
                if hasattr(over, "keep"):
                    over.keep()
                self.remove_widget(over)
                setattr(self, name, None)
                return True
        return False

    def open_drawer(self) -> None:
        self.drawer = Drawer(self.theme, self.actions, self.close_sheet)
        self.drawer.sidebar.show(self.state.chats, self.state.chat)
        self.add_widget(self.drawer)

    def _top(self) -> Widget:
        theme = self.theme
        height = max(theme.touch * 1.3, (theme.text + theme.small) * 1.5 + dp(8))
        bar = Surface(theme, "surface", line="line", size_hint_y=None, height=height, padding=(dp(4), 0), spacing=dp(2))
        center = {"center_y": 0.5}
        if theme.phone:
            bar.add_widget(IconButton(theme, "menu", self.open_drawer, pos_hint=center))
        words = Column(pos_hint=center, padding=(dp(8), 0, 0, 0))
        self._title = Line(theme, "", bold=True)
        self._under = Line(theme, "", size=theme.small, color="dim")
        words.add_widget(self._title)
        words.add_widget(self._under)
        bar.add_widget(words)
        self.library_button = IconButton(theme, "library", self.actions.open_library, pos_hint=center)
        bar.add_widget(self.library_button)
        bar.add_widget(IconButton(theme, "chart", self.actions.toggle_panel, pos_hint=center))
        if theme.phone:
            bar.add_widget(IconButton(theme, "plus", self.actions.new_chat, pos_hint=center))
        return bar

    def _show_status(self) -> None:
        state = self.state
        title = next((chat.title for chat in state.chats if chat.id == state.chat), "") or "New chat"
        self._title.show(title)
        loading = state.loading
        if loading is not None:
            self._under.show(f"{loading.stage}…")
        else:
            library = f" · {printable(state.library.stem)}" if state.library else ""
            self._under.show((state.model.name if state.model else "No model is open") + library)
        self._load_bar.opacity = 0.0 if loading is None else 1.0
        self._load_bar.height = 0 if loading is None else dp(4)
        self._load_bar.set(loading.fraction if loading else 0)
        self.composer.set_busy(state.answering)
        self.composer.set_sees(state.sees)
        self.composer.say(state.notice or ("Opening the picture…" if state.draft.opening else ""))
        self.library_button.color = self.theme.color("accent" if state.library else "dim")

    def _show_problem(self) -> None:
        self._problem_place.clear_widgets()
        problem = self.state.problem
        if problem is not None:
            card = ProblemCard(self.theme, problem, self.actions.solve, lambda: self.state.show(None))
            self._problem_place.add_widget(card)
        self._problem_place.padding = (self.theme.margin, dp(8) if problem else 0, self.theme.margin, 0)
        if not self.state.messages:
            self.chat.show([], suggest=problem is None)

    def _place(self, *_: object) -> None:
        self._ground.pos, self._ground.size = self.pos, self.size


class Drawer(BoxLayout):
    """The conversations over a phone's window; a press beside them closes it."""

    def __init__(self, theme: Theme, actions, close) -> None:
        super().__init__()
        self._close = close
        with self.canvas.before:
            Color(0, 0, 0, 0.45)
            self._shade = Rectangle()
        self.bind(size=self._place, pos=self._place)
        self.sidebar = Sidebar(theme, actions, size_hint_x=0.82)
        self.add_widget(self.sidebar)
        self.add_widget(Widget(size_hint_x=0.18))

    def _place(self, *_: object) -> None:
        self._shade.pos, self._shade.size = self.pos, self.size

    def on_touch_down(self, touch) -> bool:
        if not self.sidebar.collide_point(*touch.pos):
            self._close()
            return True
        super().on_touch_down(touch)
        return True
