package android.widget;

public class TextView extends android.view.View {
    public TextView(android.content.Context context) { super(context); }
    public final void setText(CharSequence text) { throw new RuntimeException(); }
    public final void setText(int id) { throw new RuntimeException(); }
    public CharSequence getText() { throw new RuntimeException(); }
    public final void setHint(int id) { throw new RuntimeException(); }
    public void setTextSize(float size) { throw new RuntimeException(); }
    public void setTextColor(int color) { throw new RuntimeException(); }
    public void setTextIsSelectable(boolean selectable) { throw new RuntimeException(); }
    public void setMaxLines(int lines) { throw new RuntimeException(); }
    public void setInputType(int type) { throw new RuntimeException(); }
    public final void append(CharSequence text) { throw new RuntimeException(); }
    public void setGravity(int gravity) { throw new RuntimeException(); }
}
