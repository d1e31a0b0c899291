package android.widget;

public class ProgressBar extends android.view.View {
    public ProgressBar(android.content.Context context, android.util.AttributeSet attributes, int style) { super(context); }
    public void setMax(int most) { throw new RuntimeException(); }
    public void setProgress(int value) { throw new RuntimeException(); }
}
