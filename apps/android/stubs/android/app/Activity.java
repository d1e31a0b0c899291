package android.app;

import android.content.ComponentCallbacks2;
import android.content.Intent;
import android.os.Bundle;
import android.view.ContextThemeWrapper;
import android.view.View;
import android.view.Window;

public class Activity extends ContextThemeWrapper implements ComponentCallbacks2 {
    public static final int RESULT_OK = -1;

    protected void onCreate(Bundle saved) { throw new RuntimeException(); }
    protected void onDestroy() { throw new RuntimeException(); }
    protected void onActivityResult(int request, int result, Intent data) { throw new RuntimeException(); }
    public void onTrimMemory(int level) { throw new RuntimeException(); }
    public void onBackPressed() { throw new RuntimeException(); }
    public void setContentView(View view) { throw new RuntimeException(); }
    public void startActivityForResult(Intent intent, int request) { throw new RuntimeException(); }
    public final void runOnUiThread(Runnable action) { throw new RuntimeException(); }
    public Window getWindow() { throw new RuntimeException(); }
    public Intent getIntent() { throw new RuntimeException(); }
    public void setTitle(CharSequence title) { throw new RuntimeException(); }
    public void finish() { throw new RuntimeException(); }
}
